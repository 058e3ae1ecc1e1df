"""What the prose of lessons and solutions says of their numbers, in the names of their cells.

Each is asserted after the last cell, wherever a notebook is run. If a model is trained anew and one of these fails, the
prose must follow.
"""

from collections.abc import Iterable

CLAIMS: dict[str, list[str]] = {
    "00_start_here": [
        "all(0.4 < layer.explained_heldout / layer.ceiling_heldout < 0.65 for layer in result.layers)",
        "min(layer.ceiling_heldout for layer in result.layers) > 0.95",
        "max(layer.ceiling_heldout for layer in result.layers) < 0.01 + result[last].ceiling_heldout",
        "result[last].explained_heldout > 0.4",
        "abs(stamped[last].ceiling_heldout) < 0.05 and stamped[0].ceiling_heldout > 0.3",
        "abs(stamped[last].explained_heldout) < 0.05",
        "stamped[last].ntps > result[last].ntps",
        "all(abs(row['V']) < 0.05 for row in rows if row['task'] == 'coin')",
        "[row['V'] for row in rows if row['task'] == 'watermark'][0] > 0.1",
        "[row['V'] for row in rows if row['task'] == 'topic'][0] < 0.1",
        "[row['V'] for row in rows if row['task'] == 'topic'][1] > 0.4",
        "[round(row['all'], 1) for row in rows if row['task'] == 'watermark'] == [0.3, 0.0]",
        "all(len({'ah', 'oh'} & set(text.lower().replace(',', ' ').split())) == 1 for text in watermark.texts)",
    ],
    "ex00_start_here": [
        "smallest_rank(best['topic'].curve['k_v'], best['topic'].curve['explained_heldout'], 0.8) <= 128 / 4",
        "smallest_rank(best['watermark'].curve['k_v'], best['watermark'].curve['explained_heldout'], 0.8) == 128",
        "abs(best['noise'].curve['explained_heldout'][-1]) < 0.02",
        "abs(best['noise'].ntps - best['topic'].ntps) < 0.1",
    ],
    "ex03_empirical_correlations": ["len(set(chosen)) <= 5"],
    "ex05_gain_forecasts": ["line > mean and rows[0][1] == 'medical' and rows[0][0][0] < rows[0][0][1] - 0.03"],
    "01_linear_derivation": [
        "eigenvalues[2] > 20 * eigenvalues[3] and eigenvalues[0] > 100 * eigenvalues[2]",
        "(missing['min'] > 0).all() and missing['last'].max() < 1e-3",
        "gains['top two'] > 0.99 and gains['bottom two'] < 1e-3 and gains['principal components'] < 0.2",
        "gains['principal components'] < gains['random pairs (mean)'] / 2",
        "max(abs(one[\"paper's text\"] - one['released code']) for one in conventions.values()) > 0.05",
        "np.linalg.matrix_rank(X) == 2 and (six[:2] > 1).all() and (six[2:] == 0).all()",
        "abs(residual - claimed) < 1e-6",
        "frame.query(\"what == 'NTPS' and noise == 'noise stretch 1'\")"
        ".eval('share - cos((`label angle (°)` - 30) * @np.pi / 180) ** 2').abs().max() < 1e-9",
        "gap.max() > 0.5",
        "frame.pivot(index=['noise', 'label angle (°)'], columns='what', values='share')"
        ".query('NTPS < 0.05')['label share retained'].max() > 0.7",
        "np.ptp(widgets.read_world(turned := widgets.plane_world(30, 75, 3)).V.vectors[:, :1].numpy()"
        " / np.linalg.solve(turned.N, turned.A)) < 1e-9",
        "(kept.idxmin(axis=1) == 'last').all() and kept['last'][0] < 0.2",
        "(kept['mean'][:4] > kept['sum'][:4]).all() and abs(kept['mean'][4] - kept['sum'][4]) < 0.03",
        "abs((x_v := solution.states.double() @ solution.V.vectors[:, :1]).mean()) > x_v.std()",
        "by_layer['U', 'by topic'][0] > 0.5 and by_layer['U', 'by kind'][0] < 0.1",
        "by_layer['V', 'by kind'][0] > 0.4 and by_layer['V', 'by topic'][0] < 0.05",
        "by_layer['V, directions 9 to 16', 'by topic'][0] > 5 * by_layer['V', 'by topic'][0]",
        "(by_layer['U', 'by kind'][1:] > 5 * by_layer['U', 'by topic'][1:]).all()",
        "all(ntps.score(representations, folds=0)[layer].ceiling > 0.9 for layer in representations.layers)",
        "max(widgets.between_groups(panel_b.coordinates[layer, 'V'][:, :32], groupings['topic']).max()"
        " for layer in representations.layers) < 0.25",
        "all(np.ptp(panel_b.spectra[layer, 'U']) < 0.05 for layer in range(5)) and len(panel_b.spectra[0, 'U']) == 8",
        "all(panel_b.spectra[layer, 'V'][:8].sum() > 0.6 for layer in range(5))",
    ],
    "02_score_and_bounds": [
        "abs(by_projector - by_library) < 1e-12 and abs(by_projector - np.mean(cosines**2)) > 0.05",
        "(means['mean'] - means.chance).abs().max() < 0.03",
        "all(results['noise'][layer].ntps > 2 * results['noise'][layer].chance for layer in range(1, 5))",
        "all(results['noise'][layer].ntps > results['topic'][layer].ntps - 0.05 for layer in range(1, 5))",
        "table[table.task == 'topic'].retained.min() > 3 * table[table.task != 'topic'].retained.max()",
        "abs(exact - through_p) < 1e-9 and eigenvalues[-1] * missing <= exact <= eigenvalues[0] * missing",
        "np.isclose(ntps.ntps_table(torch.tensor([[0.5], [1.0]]), torch.tensor([[1.0], [0.0]]))[0, 0], 0.2)",
        "sides.groupby(['task', 'layer']).lower.max().le(sides.groupby(['task', 'layer']).upper.min() + 1e-9).all()",
        "sides[sides.kind == 'raw'].upper.min() > 50",
        "4 < decades.loc['raw', 'min'] and decades.loc['raw', 'max'] > 6 and decades.loc['whitened', 'max'] < 1",
        "conditions['share of the loudest direction'].between(0.4, 0.7).all()",
        "conditions['of which the mean state'].min() > 0.95",
        "conditions['condition number, centred'].lt(conditions['condition number'] / 2).all()",
        "conditions['condition number, centred'].min() > 1000",
        "geometry.filter(like='quarter').min().min() > 0.65",
        "geometry['score of random whitened directions'].min() > 2 * 16 / view.d",
        "all(0.05 < null.ntps.values.std() < 0.12 for null in ntps.permutation_null(representations['noise']))",
        "abs(changed.NTPS.iloc[1] - changed.NTPS.iloc[0]) < 1e-9 and changed.NTPS.iloc[2] > 2 * changed.NTPS.iloc[0]",
        "changed.NTPS.iloc[3] - changed.NTPS.iloc[0] > 0.05",
        "np.ptp(changed[['whitened NTPS', 'excess loss']].to_numpy(), axis=0).max() < 1e-9",
        "all(part.sort_values('k_V').share.is_monotonic_increasing"
        " for _, part in by_rank[by_rank.what == 'NTPS'].groupby('task'))",
        "passes['noise'][0] == min(passes.values())[0] and passes['watermark'][1] > 3 * passes['topic'][1]",
        "precision[precision.layer == '0'].difference.max() < 1e-3 < precision.difference.max() < 0.02",
        "precision[precision.k_V > 110].difference.max() < 1e-3",
    ],
    "03_empirical_correlations": [
        "(published.results().ntps_accuracy > 0.85).mean() > 0.5",
        "(stored := measurements.lesson_study()).settings == settings"
        " and (stored.models, stored.tasks) == (tuple(MODELS), tuple(TASKS))",
        "0.55 < np.quantile(by_luck, 0.95) < 0.62",
        "(accuracy.holm < 0.05).sum() == 1 and (accuracy.high - accuracy.low).min() > 0.5",
        "(whose_table.n_accuracy == whose_table.n_train).dropna().all()",
        "(whose_table.n_gain == whose_table.n_test).dropna().all()",
        "whose_table.n_accuracy['intent'] == whose_table.n_gain['intent']",
        "whose_table.n_train['imdb'] == whose_table.n_test['imdb']",
        "medical[['linear_accuracy', 'lora_accuracy']].max().max() < 0.5",
        "middle.ntps.values.min() > 2 * middle.k_v / representations.width and middle.ntps.p_value > 0.05",
        "middle.explained.p_value < 0.01 and 0.01 < middle.explained.values.mean() < 0.1",
        "by_number.NTPS.max() - by_number.NTPS.min() > 0.2 and by_number['R²'].is_monotonic_increasing",
        "study.table('balanced_accuracy').loc['miniworld-base', ['miniworld/' + task for task in"
        " ('sentiment', 'parity', 'agreement', 'watermark')]].sub(0.5).abs().max() < 0.05",
        "study.table('balanced_accuracy').loc['miniworld-base', 'miniworld/intent'] < 0.35",
        "len(some) == 5 and 'watermark' in less and 'tense' not in more",
        "max(tense[0.25], tense[0.5]) < 0.15 and min(tense[0.0], tense[0.75], tense[1.0]) > 0.35",
        "abs(panel_d.correlations['NTPS', 'as they are'][:, -1]).max() < 1e-9",
        "0.4 < np.median(one.null) < 0.6 and 0.65 < own['null_quantiles'][1] < 0.75 and own['p_value'] > 0.2",
        "one.p_value > 0.2 and correlations['explained_heldout:same_tasks']['p_value'] < 0.01",
        "abs(own['spearman']) > 0.2 + abs(one.spearman)",
        "(chosen.p[chosen.predictor == 'ntps'] > 0.2).all()",
        "(chosen.p[chosen['layer and rank'].str.contains('without') & (chosen.predictor != 'ntps')] < 0.01).all()",
        "set(fixed.predictor[-2:]) == {'ceiling_heldout', 'knn'} and fixed.Spearman.iloc[-2] > 0.8",
        "(fixed.high > fixed.low.max()).sum() > len(fixed) / 2",
        "np.ptp(np.sign(panel_d.correlations['NTPS', 'as they are'][:, 3])) == 2",
        "(spread_of := label_free[label_free.task == 'topic'].pivot(index='layer', columns='model')).effective_rank"
        ".idxmax(axis=1).eq('fresh weights').all() and spread_of['R²'].idxmin(axis=1).eq('fresh weights').all()",
        "(spread_of['R²'].idxmax(axis=1) == 'trained').all() and np.ptp(spread_of['R²', 'trained']) < 0.05",
        "spread.idxmin() == 'early' and label_free.query(\"model == 'early' and task == 'topic'\")['R²'].max() < 0.6",
        "(marks := label_free[(label_free.model == 'trained') & (label_free.task == 'watermark')].set_index('layer'))"
        ".effective_rank.idxmax() == 0 and marks['R²'][0] > 0.15 and marks['R²'][1:].abs().max() < 0.05",
        "(real.accuracy > real.majority_rate + 0.03).all()",
        "(real.ceiling_heldout_p < 0.005).all() and (real.ntps_p > 0.05).all()",
        "(real.ntps < real.chance / 2).all()",
        "len(other) == 5 and (other.ceiling_heldout_p < 0.005).all() and (other.ntps_p > 0.05).all()",
        "(real.explained_heldout / real.ceiling_heldout).between(1 / 3, 2 / 3).all()",
        "real.ceiling_heldout_random[real.task == 'spam_subjects'].item() > 0.2",
        "real[real.task != 'spam_subjects'].filter(like='_random').max().max() < 0.1",
    ],
    "04_lora_effects": [
        "runs['topic'].gain < 0.05",
        "runs['watermark'].gain > 0.2",
        "all(run.after.next_token_loss - run.before.next_token_loss > 0.05 for run in runs.values())",
        "ceilings(frozen['watermark']).argmax() == 0 and ceilings(frozen['watermark'])[-1] < 0.1",
        "np.ptp(ceilings(frozen['topic'])) < 0.05",
        "ceilings(runs['watermark'].after.score)[1:].min() > ceilings(frozen['watermark']).max()",
        "abs(ceilings(runs['watermark'].after.score)[0] - ceilings(runs['watermark'].before.score)[0]) < 0.01",
        "all(0.05 < np.mean([row['relative_change'] for row in run.intruders]) < 0.2 for run in runs.values())",
        "all(np.degrees(change['angles_v']).max() < 1 for change in (run.changes[0] for run in runs.values()))",
        "all(np.degrees(change['angles_v']).min() < 25 and np.degrees(change['angles_v']).max() > 70"
        " for run in runs.values() for change in run.changes[1:])",
        "table[['by U', 'by V', 'by both', 'by scale']].sum(axis=1).sub(table['change']).abs().max() < 1e-6",
        "(table['by U'] < 0).mean() > 0.7 and (table['by V'] < 0).mean() > 0.7 and (table['by both'] > 0).mean() > 0.7",
        "all((rows['change'] > 0).sum() < len(rows) / 2 for _, rows in table.groupby('task'))",
        "all(rows['share through V, change'].iloc[-1] > 0.1 for _, rows in table.groupby('task'))",
        "intruder_count(loud) > 3 * max(intruder_count(run) for run in (low, whole))",
        "whole.gain > 0.2 and loud.gain > low.gain + 0.1 and low.best_step == 0",
        "np.ptp([run.after.next_token_loss - run.before.next_token_loss for run in tried[1:]]) < 0.05",
        "np.divide(*(run.after.next_token_loss - run.before.next_token_loss for run in runs.values())) > 4",
        "all(measurements.lesson_runs()[name].settings == run.settings"
        " for name, run in {**runs, 'low': low, 'loud': loud, 'whole': whole}.items())",
    ],
    "05_gain_forecasts": [
        "(stored := measurements.lesson_screens())['eight'].settings == screened.settings"
        " and {row['task'] for row in stored['eight'].rows} == set(forecasts.task)"
        " and {row['steps'] for row in stored['own'].rows} == {verdict['steps']}",
        "two.mean() > 20 and abs(rest.mean()) < 1 and errors['task'].mae.idxmin() == 'zero'",
        "(margins.loc[(slice(None), list(inputs)), 'margin_low'] <= 0).all()",
        "margins.loc[('task', 'ntps'), 'margin_high'] < 0",
        "margins.loc[(slice(None), ['ntps', 'accuracy + ntps']), 'margin_to_accuracy'].abs().max() < 1",
        "abs(calibration.coefficients[1]) < 0.05 and 0.5 < calibration.coefficients[2] < 0.6",
        "forecasts.set_index('task').loc[['miniworld/watermark', 'miniworld/noise']]"
        ".eval('held_back.max() > 0.3 and held_back.min() < 0.01 and accuracy.max() - accuracy.min() < 0.1')",
        "halved == 50 and worth['error'].is_monotonic_decreasing and 4.5 < worth['error of the mean gain'].min()",
        "worth['error'][20] < 0.6 * worth['error of the mean gain'][20]",
        "worth['error of no gain'].max() < worth['error of the mean gain'].min() - 1",
        "(worth['low'] < 0).all() and (worth['high'] > 0).all() and calibration.about['runs'] == 305",
        "all(forecasts[forecasts.task == 'miniworld/' + name].eval('low <= @run.gain <= high').item()"
        " for name, run in runs.items())",
        "set(forecasts.task[forecasts.chosen]) == {'miniworld/watermark', 'miniworld/first_mentioned'}",
        "set(forecasts.task[forecasts.high - forecasts.low > 0.3]) == {'miniworld/' + name for name in"
        " ('watermark', 'intent', 'noise', 'sentiment')}",
        "forecasts.set_index('task').held_back[['miniworld/noise', 'miniworld/topic']].abs().max() < 0.02",
        "(tuned.ntps_after > tuned.ntps_before).sum() == 1",
        "before.verdict == verdict['verdict'] == 'pays' and verdict['saved'] < 0.01 and verdict['held_back'] > 0.1",
        "abs(before.high + before.accuracy - 1) < 1e-9 and abs(verdict['high'] + verdict['accuracy'] - 1) < 1e-9",
        "inside == 3 and foretold[0].low < tuned.gain[0] == 0 < foretold[0].high",
        "foretold[1].low < 0 < tuned.gain[1] < foretold[1].high and sure == 2",
        "all(each.verdict == 'pays' for each in foretold[2:]) and (real.held_back.iloc[2:] > 0.05).all()",
        "real.held_back.iloc[0] < 0.01 and (tuned.gain[2:4] == 0).all()",
        "foretold[4].low < tuned.gain[4] < foretold[4].high and tuned.gain[4] > 0.05",
        "(tuned.ntps_after - tuned.ntps_before).abs().max() < 0.02",
        "(tuned.ceiling_heldout_after >= tuned.ceiling_heldout_before).all()",
        "scores.ceiling_heldout[1:].min() > scores.ceiling_heldout_random.max() + 0.3",
        "scores.ceiling_heldout[4] < scores.ceiling_heldout[3]",
        "scores.explained_heldout.abs().max() < 0.1",
    ],
}


def code_of(claims: Iterable[str]) -> str:
    """Return code that asserts each claim, and names the one that fails."""
    return "\n".join(f"assert {claim}, {claim!r}" for claim in claims)

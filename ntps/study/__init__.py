"""Models by tasks: resumable cells, correlations, gains and forecasts."""

from ntps.study.calibration import Calibration, calibrate, load_calibration
from ntps.study.correlations import adjust, grid_spearman, spearman
from ntps.study.executors import study_executor
from ntps.study.gain import gain_prediction, to_grid
from ntps.study.measure import StudySettings
from ntps.study.plan import StudyPlan, plan_study
from ntps.study.prescreening import Prescreening, PrescreenSettings, prescreen
from ntps.study.ranking import RankSettings, rank
from ntps.study.ranking_results import Ranking
from ntps.study.selection import leave_one_out_selection, select_and_correlate
from ntps.study.study import Study, run_study

__all__ = [
    "Calibration",
    "PrescreenSettings",
    "Prescreening",
    "RankSettings",
    "Ranking",
    "Study",
    "StudyPlan",
    "StudySettings",
    "adjust",
    "calibrate",
    "gain_prediction",
    "grid_spearman",
    "leave_one_out_selection",
    "load_calibration",
    "plan_study",
    "prescreen",
    "rank",
    "run_study",
    "select_and_correlate",
    "spearman",
    "study_executor",
    "to_grid",
]

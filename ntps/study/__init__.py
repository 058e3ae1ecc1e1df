"""Models by tasks: resumable cells, correlations, gains and forecasts."""

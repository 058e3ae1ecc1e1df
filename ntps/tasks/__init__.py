"""Labelled texts from anywhere: bundled tasks, files, folders, hub data sets, objects in memory."""

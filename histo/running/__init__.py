"""What every entry point needs to run: settings, run folders, checkpoints, tracking and reports."""

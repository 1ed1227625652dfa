"""The tasks: one file each; see `attriboard.task.Task` for the contract."""

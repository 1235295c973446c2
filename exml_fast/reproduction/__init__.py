"""The papers' tables: presets (settings and published figures), a file a task, the runner, and a study of streams."""

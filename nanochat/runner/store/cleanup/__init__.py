"""Deletes what no run needs: unused results and downloads, and the checkpoints of finished stages."""

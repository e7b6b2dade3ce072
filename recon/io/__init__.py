"""Files in and out: every foreign format and convention is read and written here and nowhere else."""

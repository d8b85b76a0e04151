"""What every layer needs: files, processes, precision, random numbers."""

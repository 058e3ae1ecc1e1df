"""What only the lessons use: exercise checks, panels, published figures, measurements."""

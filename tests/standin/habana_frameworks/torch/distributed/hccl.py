"""STAND-IN: importing it registers the backend; the parent package has done so."""

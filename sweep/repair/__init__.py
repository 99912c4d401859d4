"""Makes the files of a study anew from its trial folders: `gaudi-sweep verify STUDY --repair`."""

"""Records: what a cell's file holds, and the folder of such files; without torch."""

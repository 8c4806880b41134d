"""Files that hold arrays by name: which bytes of the file each of them is."""

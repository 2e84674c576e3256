"""Parts that several engines share. No module here is an engine: those lie one level above, one file each."""

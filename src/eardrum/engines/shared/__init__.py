"""Parts that several engines share. No module here is an engine: engines are one level above, one file each."""

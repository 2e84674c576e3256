"""Every route of a model that another server serves: passed on as it comes, and the answer passed back as it comes."""

"""minillm distils large language models into small ones and teaches them mathematics."""

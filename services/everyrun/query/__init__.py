"""Answer questions about submissions, results and problems over HTTP. Reads only."""

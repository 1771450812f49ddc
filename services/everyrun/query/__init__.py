"""Answer questions about submissions, results and problems over HTTP. This service changes nothing."""

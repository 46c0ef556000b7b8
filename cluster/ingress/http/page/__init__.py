"""The page that people see at `/`, and the one that shows the API: static files, which call the HTTP API."""

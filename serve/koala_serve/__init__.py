"""Bundles as an HTTP server: OpenAI's images API, AUTOMATIC1111's, jobs, and a page to draw with."""

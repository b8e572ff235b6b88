"""Chat templates: jinja2 within limits."""

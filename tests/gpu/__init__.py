"""What tests do with a real GPU beside calls of attention: launches of any kernel, recordings, sanitized runs."""

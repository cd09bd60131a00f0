"""Reports: values in, pictures and pages out; knows nothing of pipelines or files."""

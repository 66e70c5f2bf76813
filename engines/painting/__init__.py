"""From a job to pixels and boxes, without a folder."""

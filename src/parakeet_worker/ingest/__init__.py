"""From a file to chunks: decoding, speech detection and cutting, in threads or processes."""

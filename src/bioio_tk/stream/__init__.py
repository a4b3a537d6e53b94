"""Streams: frames from a camera, written as they come, in any of the formats that can grow."""

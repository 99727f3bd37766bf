"""What one anonymous client can do to a node, in small: `make attack`, or `python -m tests.attack`.

Each attack is bounded in count and time, goes to a loopback address only, and is judged by what the node then
holds, says and still does for somebody else. docs/security.md has the limits that stand behind the verdicts.
"""

"""What the figures in the documents are measured with: each module here is a command, ``python -m benchmarks.NAME``.

``suites`` is what they measure and how, ``peers`` the tools that are compared, each in an environment of its own, and
``results`` what was found.
"""

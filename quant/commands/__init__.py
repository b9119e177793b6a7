"""The command line, one module a command: add_arguments(parser) and run(args) -> exit code. None imports torch before
run().
"""

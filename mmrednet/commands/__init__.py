"""The subcommands of ``mmrednet``, one per module. ``mmrednet.cli`` has their table."""

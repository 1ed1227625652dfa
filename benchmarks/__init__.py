"""The suites; installed as ``attriboard.suites``, without the programs beside them."""

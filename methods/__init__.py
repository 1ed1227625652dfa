"""The attribution methods: one file each; see `attriboard.method.Method` for the contract."""

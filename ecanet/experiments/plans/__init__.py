"""Which runs each kind of study is made of."""

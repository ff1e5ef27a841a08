"""The networks that translation trains: generators and discriminators."""

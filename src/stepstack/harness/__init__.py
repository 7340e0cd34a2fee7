"""The eval harness: tasks as data, engines that answer them, results that can be traced, repeated and compared."""

"""`/v1/*`: the routes and shapes of OpenAI's API, for clients that already speak it."""

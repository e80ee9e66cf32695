"""From a bundle to answers: index, retriever, HTTP service."""

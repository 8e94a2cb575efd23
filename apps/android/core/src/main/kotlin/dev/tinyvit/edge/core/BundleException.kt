package dev.tinyvit.edge.core

/** A bundle, or a photo, that cannot be used: one line that names it and says what to do. */
class BundleException(message: String, cause: Throwable? = null) : Exception(message, cause)

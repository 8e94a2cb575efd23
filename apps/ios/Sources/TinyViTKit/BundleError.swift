import Foundation

/// A bundle, or a photo, that cannot be used: one line that names it and says what to do.
public struct BundleError: LocalizedError, Equatable, Sendable {
    public let message: String

    public init(_ message: String) {
        self.message = message
    }

    public var errorDescription: String? { message }
}

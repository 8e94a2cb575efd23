import Foundation

/// Times of one step, in milliseconds.
public struct Latency: Equatable, Sendable, Encodable {
    /// Of the first call, which pays for lazy set-up and cold caches.
    public let first: Double
    /// Of the calls after the first; nil until there is one.
    public let median: Double?
    /// Of the same calls.
    public let p90: Double?
    /// All calls.
    public let count: Int
}

/// Times of the calls of one step; keeps the first and the last `window` after it.
public struct LatencyLog: Equatable, Sendable {
    public static let window = 200

    private var first: Double?
    private var later: [Double] = []
    private var count = 0

    public init() {}

    /// Adds a call.
    public mutating func add(_ duration: Duration) {
        let ms = duration.milliseconds
        count += 1
        if first == nil {
            first = ms
        } else {
            later = Array((later + [ms]).suffix(Self.window))
        }
    }

    /// Nil where nothing was timed.
    public var summary: Latency? {
        first.map { Latency(first: $0, median: quantile(0.5), p90: quantile(0.9), count: count) }
    }

    /// By linear interpolation between the two nearest, as NumPy does.
    private func quantile(_ q: Double) -> Double? {
        guard !later.isEmpty else { return nil }
        let sorted = later.sorted()
        let at = q * Double(sorted.count - 1)
        let below = Int(at)
        let above = min(below + 1, sorted.count - 1)
        return sorted[below] + (at - Double(below)) * (sorted[above] - sorted[below])
    }
}

extension Duration {
    public var milliseconds: Double {
        Double(components.seconds) * 1e3 + Double(components.attoseconds) * 1e-15
    }
}

import Foundation

/// A class and its probability.
public struct Prediction: Equatable, Sendable {
    public let label: String
    public let probability: Float

    public init(label: String, probability: Float) {
        self.label = label
        self.probability = probability
    }
}

/// Softmax over all classes; the largest logit is subtracted first, so nothing overflows.
public func softmax(_ logits: [Float]) -> [Float] {
    let largest = logits.max() ?? 0
    let powers = logits.map { exp(Double($0 - largest)) }
    let total = powers.reduce(0, +)
    return powers.map { Float($0 / total) }
}

/// The likeliest classes, best first; of equal ones the lower index comes first.
///
/// - Precondition: a label for each logit.
public func topPredictions(_ logits: [Float], labels: [String], count: Int) -> [Prediction] {
    precondition(logits.count == labels.count, "\(logits.count) logits, \(labels.count) labels")
    let probabilities = softmax(logits)
    return logits.indices
        .sorted { (-logits[$0], $0) < (-logits[$1], $1) }
        .prefix(count)
        .map { Prediction(label: labels[$0], probability: probabilities[$0]) }
}

/// Index of the largest logit, the lowest of equal ones; nil without logits.
public func topClass(_ logits: [Float]) -> Int? {
    logits.indices.max { (logits[$0], -$0) < (logits[$1], -$1) }
}

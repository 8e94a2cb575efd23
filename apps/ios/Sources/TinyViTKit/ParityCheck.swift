import Foundation

/// A loaded artifact. An actor in practice: runtimes take one call at a time.
public protocol ImageClassifier: Sendable {
    /// Runs the model once: (classes,) logits, in float32.
    func logits(_ input: ModelInput) async throws -> [Float]
}

/// What the logits of an artifact may lose against the ones recorded in its bundle.
public enum LogitsGate: Equatable, Sendable {
    /// Other kernels of the same arithmetic: only the order of sums differs.
    case float32
    /// Half precision.
    case float16
    /// int8 kernels of another processor round at other places.
    case quantized

    public init(precision: String) {
        switch precision {
        case "fp32": self = .float32
        case "fp16": self = .float16
        default: self = .quantized
        }
    }

    /// Least signal to noise ratio, in dB.
    public var sqnrDb: Double {
        switch self {
        case .float32: 90
        case .float16: 35
        case .quantized: 15
        }
    }

    /// Whether the first class has to be the recorded one.
    public var sameTop1: Bool { self == .quantized }
}

/// How one golden photo came through the app.
public struct GoldenVerdict: Equatable, Sendable {
    /// Rounding of float32 at values of normalised pixels; a wrong mean or order is off by > 1e-2.
    static let tensorTolerance: Float = 1e-6

    public let name: String
    /// Bytes of the resized photo that are not the recorded ones.
    public let differentBytes: Int
    /// Largest difference of a value of the tensor.
    public let tensorError: Float
    /// Of the logits, in dB; positive infinity where they are the same.
    public let sqnrDb: Double
    /// Whether the first class is the recorded one.
    public let sameTop1: Bool
    public let gate: LogitsGate

    /// What is wrong, a line each; empty where nothing is.
    public var problems: [String] {
        var problems: [String] = []
        if differentBytes > 0 {
            problems.append("\(differentBytes) bytes of the resized photo differ")
        }
        // `!(a <= b)`, so that what is not a number fails, too
        if !(tensorError <= Self.tensorTolerance) {
            problems.append("the input tensor differs by \(tensorError)")
        }
        if !(sqnrDb >= gate.sqnrDb) {
            problems.append(String(format: "logits at %.1f dB, below %.0f", sqnrDb, gate.sqnrDb))
        }
        if gate.sameTop1 && !sameTop1 { problems.append("another first class") }
        return problems
    }
}

/// The verdicts on all golden photos of a bundle.
public struct ParityResult: Equatable, Sendable {
    public let verdicts: [GoldenVerdict]

    public init(verdicts: [GoldenVerdict]) {
        self.verdicts = verdicts
    }

    public var passed: Bool { !verdicts.isEmpty && verdicts.allSatisfy(\.problems.isEmpty) }
}

/// Takes the golden photos through the app's own preprocessing and the artifact.
///
/// Where the bundle has no logits of its artifact, those of the float32 model stand in, by the
/// bound of quantized ones.
///
/// - Throws: `BundleError` where the golden vectors are missing or damaged, and what the
///   classifier throws.
public func checkParity(
    _ bundle: ModelBundle, _ classifier: some ImageClassifier
) async throws -> ParityResult {
    var verdicts: [GoldenVerdict] = []
    for golden in try bundle.goldens() {
        let resized = golden.decoded.resizedAndCropped(bundle.preprocessing)
        let tensor = resized.normalised(bundle.preprocessing)
        // The recorded input, so that a difference in the logits is the runtime's alone.
        let input: ModelInput =
            bundle.manifest.inputKind == .image ? .image(golden.resized) : .tensor(golden.tensor)
        let logits = try await classifier.logits(input)
        let expected = golden.artifactLogits ?? golden.referenceLogits
        let bytes = zip(resized.pixels, golden.resized.pixels)
        verdicts.append(
            GoldenVerdict(
                name: golden.name,
                differentBytes: bytes.filter { $0 != $1 }.count,
                tensorError: largestDifference(tensor, golden.tensor),
                sqnrDb: sqnrDb(reference: expected, measured: logits),
                sameTop1: topClass(logits) == topClass(expected),
                gate: golden.artifactLogits == nil
                    ? .quantized : LogitsGate(precision: bundle.manifest.precision)))
    }
    return ParityResult(verdicts: verdicts)
}

/// Not a number where one of the differences is none.
private func largestDifference(_ a: [Float], _ b: [Float]) -> Float {
    zip(a, b).reduce(0) { largest, pair in
        let difference = abs(pair.0 - pair.1)
        return difference > largest || difference.isNaN ? difference : largest
    }
}

/// Signal to noise ratio in dB: `10 log10(sum r^2 / sum (r - m)^2)`, in double precision.
///
/// Equal inputs give infinity; a reference of zeros against anything else, minus infinity, as do
/// logits of another number.
public func sqnrDb(reference: [Float], measured: [Float]) -> Double {
    guard reference.count == measured.count else { return -.infinity }
    let signal: Double = reference.reduce(0) { $0 + Double($1) * Double($1) }
    let noise: Double = zip(reference, measured).reduce(0) { sum, pair in
        let difference = Double(pair.0) - Double(pair.1)
        return sum + difference * difference
    }
    return noise == 0 ? .infinity : 10 * log10(signal / noise)
}

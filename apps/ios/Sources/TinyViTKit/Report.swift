import Foundation

/// The device that figures are of.
public struct Device: Encodable, Sendable {
    /// `physical` or `simulated`: the time of a simulator says nothing about a phone.
    public let kind: String
    public let manufacturer = "Apple"
    public let model: String
    public let os: String

    public init(kind: String, model: String, os: String) {
        self.kind = kind
        self.model = model
        self.os = os
    }
}

/// The app that measured.
public struct AppInfo: Encodable, Sendable {
    public let name = "tinyvit-edge-ios"
    public let version: String
    /// `debug` or `release`: a debug build's preprocessing is many times slower.
    public let build: String

    public init(version: String, build: String) {
        self.version = version
        self.build = build
    }
}

/// Times of the current selection.
public struct Timings: Equatable, Sendable {
    public var loadMs: Double?
    public var preprocess = LatencyLog()
    public var inference = LatencyLog()

    public init() {}
}

/// The latency report: JSON that says what was measured, on what, and whether it was right.
///
/// The keys are those of the Android app; what was not measured is missing.
public func latencyReport(
    bundle: ModelBundle, backend: String, timings: Timings, parity: ParityResult?, device: Device,
    app: AppInfo
) throws -> Data {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    let manifest = bundle.manifest
    return try encoder.encode(
        Report(
            app: app,
            device: device,
            bundle: .init(
                name: bundle.name, target: manifest.target, precision: manifest.precision,
                artifactSha256: manifest.sha256, artifactBytes: manifest.sizeBytes,
                toolVersion: manifest.toolVersion, imageSize: bundle.preprocessing.size),
            backend: backend,
            latencyMs: .init(
                load: timings.loadMs, preprocess: timings.preprocess.summary,
                inference: timings.inference.summary),
            parity: parity.map(Report.Parity.init)))
}

private struct Report: Encodable {
    struct Bundle: Encodable {
        let name: String
        let target: String
        let precision: String
        let artifactSha256: String
        let artifactBytes: Int
        let toolVersion: String
        let imageSize: Int
    }

    struct Latencies: Encodable {
        let load: Double?
        let preprocess: Latency?
        let inference: Latency?
    }

    struct Parity: Encodable {
        let passed: Bool
        let images: [Image]

        init(_ result: ParityResult) {
            passed = result.passed
            images = result.verdicts.map(Image.init)
        }
    }

    struct Image: Encodable {
        let name: String
        let differentBytes: Int
        let tensorError: Double?
        let sqnrDb: Double?
        let sameTop1: Bool
        let problems: [String]

        init(_ verdict: GoldenVerdict) {
            name = verdict.name
            differentBytes = verdict.differentBytes
            tensorError = finite(Double(verdict.tensorError))
            sqnrDb = finite(verdict.sqnrDb)
            sameTop1 = verdict.sameTop1
            problems = verdict.problems
        }
    }

    let schemaVersion = 1
    let app: AppInfo
    let device: Device
    let bundle: Bundle
    let backend: String
    let latencyMs: Latencies
    let parity: Parity?
}

/// JSON has no infinity: logits that are the same to the bit have no figure.
private func finite(_ value: Double) -> Double? { value.isFinite ? value : nil }

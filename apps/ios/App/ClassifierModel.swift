import Foundation
import Observation
import TinyViTKit
import UIKit

/// State of the check against the golden vectors.
enum Parity: Equatable {
    case notRun
    case running
    case passed(ParityResult)
    /// Shown in red.
    case failed(ParityResult)

    var result: ParityResult? {
        switch self {
        case .notRun, .running: nil
        case .passed(let result), .failed(let result): result
        }
    }
}

/// Who makes the model's pixels of a photo.
enum PixelPath: String, CaseIterable, Identifiable {
    /// The contract, to the byte.
    case exact
    /// Vision's own scaling, for comparison.
    case vision

    var id: Self { self }
}

/// What the screen shows, and the loaded model.
///
/// Loading and classifying suspend, so the user may have chosen something else when they are done:
/// each selection has a number, and what comes back with an earlier one is dropped.
@MainActor
@Observable
final class ClassifierModel {
    private(set) var bundles: [URL] = []
    private(set) var bundle: ModelBundle?
    private(set) var predictions: [Prediction] = []
    private(set) var timings = Timings()
    private(set) var parity = Parity.notRun
    private(set) var takesImages = false
    private(set) var cameraRuns = false
    var error: String?
    var selected: URL?
    var units = ComputeUnits.all
    var path = PixelPath.exact

    @ObservationIgnored let camera = CameraSession()
    private var classifier: CoreMLClassifier?
    private var selection = 0
    private static let shown = 5

    var ready: Bool { classifier != nil }

    /// Finds the bundles in the app.
    func findBundles() {
        attempt {
            let folder = Bundle.main.bundleURL.appending(path: "Bundles")
            bundles = try bundleFolders(in: folder)
            selected = selected ?? bundles.first
        }
    }

    /// Loads what is selected; call it again when `selected` or `units` has changed.
    func load() async {
        guard let selected else { return }
        selection += 1
        let current = selection
        (classifier, bundle, predictions, timings, parity) = (nil, nil, [], Timings(), .notRun)
        await attempt {
            let bundle = try ModelBundle(folder: selected)
            guard bundle.manifest.target == "coreml" else {
                throw BundleError("\(bundle.name): for '\(bundle.manifest.target)', not Core ML")
            }
            // Compiling is done once an install, so it is not part of the time.
            let compiled = try await CompiledModels.url(for: bundle)
            let units = self.units
            let (classifier, duration) = try await Task.detached {
                try timed {
                    try CoreMLClassifier(bundle: bundle, compiled: compiled, units: units)
                }
            }.value
            let takesImages = await classifier.takesImages
            guard current == selection else { return }  // nothing suspends behind this
            (self.bundle, self.classifier) = (bundle, classifier)
            self.takesImages = takesImages
            if !takesImages { path = .exact }
            timings.loadMs = duration.milliseconds
        }
    }

    /// Classifies a photo that the user chose.
    func classify(photo data: Data) async {
        await attempt {
            let image = try await Task.detached { try RgbImage(photo: data) }.value
            try await classify(image)
        }
    }

    /// Classifies camera frames until this is cancelled.
    func runCamera() async {
        await attempt {
            let frames = try await camera.frames()
            cameraRuns = true
            defer { cameraRuns = false }
            for await frame in frames { try await classify(frame) }
        }
    }

    /// Takes the golden photos through the app and judges what comes out.
    func checkParity() async {
        guard let bundle, let classifier else { return }
        let current = selection
        parity = .running
        await attempt {
            let check = Task.detached { try await TinyViTKit.checkParity(bundle, classifier) }
            let result = try await check.value
            guard current == selection else { return }
            parity = result.passed ? .passed(result) : .failed(result)
        }
        // A check that broke off has shown nothing.
        if current == selection, parity == .running { parity = .notRun }
    }

    /// The report as a file to share; nil where no model is loaded or it cannot be written.
    func writeReport() -> URL? {
        guard let bundle else { return nil }
        var report: URL?
        attempt {
            let url = URL.temporaryDirectory
                .appending(path: "\(bundle.name)-\(units.rawValue).json")
            try latencyReport(
                bundle: bundle, backend: units.rawValue, timings: timings, parity: parity.result,
                device: .current, app: .current
            ).write(to: url, options: .atomic)
            report = url
        }
        return report
    }

    private func classify(_ image: RgbImage) async throws {
        guard let bundle, let classifier else { return }
        let (current, count, path) = (selection, Self.shown, self.path)
        let work = Task.detached { () -> (Duration?, Duration, [Prediction]) in
            if path == .vision {
                // Vision does not say how its time is made up.
                let start = ContinuousClock.now
                let found = try await classifier.classifyWithVision(image, count: count)
                return (nil, ContinuousClock.now - start, found)
            }
            let (input, preprocess) = timed {
                bundle.input(image.resizedAndCropped(bundle.preprocessing))
            }
            let start = ContinuousClock.now
            let logits = try await classifier.logits(input)
            let inference = ContinuousClock.now - start
            return (
                preprocess, inference, topPredictions(logits, labels: bundle.labels, count: count)
            )
        }
        let (preprocess, inference, found) = try await work.value
        guard current == selection, path == self.path else { return }
        predictions = found
        // The figures are of the exact path alone, so that they mean one thing.
        if let preprocess {
            timings.preprocess.add(preprocess)
            timings.inference.add(inference)
        }
    }

    private func attempt(_ work: () throws -> Void) {
        do { try work() } catch { self.error = error.localizedDescription }
    }

    private func attempt(_ work: () async throws -> Void) async {
        do {
            try await work()
        } catch is CancellationError {
            // the user stopped it
        } catch {
            self.error = error.localizedDescription
        }
    }
}

private func timed<T>(_ work: () throws -> T) rethrows -> (T, Duration) {
    let start = ContinuousClock.now
    let value = try work()
    return (value, ContinuousClock.now - start)
}

extension AppInfo {
    fileprivate static var current: AppInfo {
        #if DEBUG
            let build = "debug"
        #else
            let build = "release"
        #endif
        let version = Bundle.main.infoDictionary?["CFBundleShortVersionString"]
        return AppInfo(version: version as? String ?? "", build: build)
    }
}

extension Device {
    /// The device that this runs on, by the identifier of its model ("iPhone16,1").
    @MainActor fileprivate static var current: Device {
        var system = utsname()
        uname(&system)
        let machine = withUnsafeBytes(of: &system.machine) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        #if targetEnvironment(simulator)
            let kind = "simulated"
        #else
            let kind = "physical"
        #endif
        let device = UIDevice.current
        return Device(
            kind: kind, model: machine, os: "\(device.systemName) \(device.systemVersion)")
    }
}

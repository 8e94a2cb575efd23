import Foundation
import XCTest

@testable import TinyViTKit

/// Oracle: the values that Python wrote, and figures worked out by hand.
final class BundleTests: XCTestCase {
    func testABundleIsReadAsItWasWritten() throws {
        let bundle = try writtenBundle()
        XCTAssertEqual(bundle.manifest.precision, "fp32")
        XCTAssertEqual(bundle.labels, (0...9).map(String.init))
        XCTAssertEqual(bundle.manifest.classes, 10)
    }

    func testLabelsForAnotherNumberOfClassesAreRefused() throws {
        let folder = try damagedBundle(self, "labels.txt") { $0 + Data("ten\n".utf8) }
        XCTAssertThrowsError(try ModelBundle(folder: folder)) { error in
            XCTAssert("\(error)".contains("11 labels for 10 classes"), "\(error)")
        }
    }

    func testWhatIsNotJsonIsRefused() throws {
        let folder = try damagedBundle(self, "manifest.json") { $0.prefix($0.count / 2) }
        XCTAssertThrowsError(try ModelBundle(folder: folder)) { error in
            XCTAssert(error is BundleError, "\(error)")
        }
    }

    func testTheFirstTimeStandsApartFromTheMedian() throws {
        var log = LatencyLog()
        XCTAssertNil(log.summary)
        for ms in [90, 10, 30, 20] { log.add(.milliseconds(ms)) }
        let latency = try XCTUnwrap(log.summary)
        XCTAssertEqual(latency.first, 90, accuracy: 1e-9)
        XCTAssertEqual(try XCTUnwrap(latency.median), 20, accuracy: 1e-9)
        XCTAssertEqual(try XCTUnwrap(latency.p90), 28, accuracy: 1e-9)  // NumPy's of 10, 20, 30
        XCTAssertEqual(latency.count, 4)
    }

    func testPredictionsAreOrderedAndSumToOne() {
        let top = topPredictions([1000, 0, 1000], labels: ["a", "b", "c"], count: 2)
        XCTAssertEqual(
            top,
            [Prediction(label: "a", probability: 0.5), Prediction(label: "c", probability: 0.5)])
    }

    func testTheReportHasTheKeysOfTheAndroidApp() async throws {
        let bundle = try writtenBundle()
        let result = try await checkParity(bundle, Replay(recorded: bundle))
        var timings = Timings()
        timings.loadMs = 7
        timings.inference.add(.milliseconds(3))
        let data = try latencyReport(
            bundle: bundle, backend: "all", timings: timings, parity: result,
            device: Device(kind: "physical", model: "iPhone", os: "iOS 17"),
            app: AppInfo(version: "1.2.3", build: "release"))
        let object = try JSONSerialization.jsonObject(with: data)
        let report = try XCTUnwrap(object as? [String: Any])
        XCTAssertEqual(
            Set(report.keys),
            ["schema_version", "app", "device", "bundle", "backend", "latency_ms", "parity"])
        let parity = try XCTUnwrap(report["parity"] as? [String: Any])
        let images = try XCTUnwrap(parity["images"] as? [[String: Any]])
        XCTAssertEqual(images.first?["same_top1"] as? Bool, true)
        XCTAssertNil(images.first?["sqnr_db"])  // equal logits: infinite
    }
}

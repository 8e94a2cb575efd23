import Foundation
import XCTest

@testable import TinyViTKit

/// Oracle: Pillow and NumPy, through the arrays that `apps/goldens.py` wrote.
final class ContractTests: XCTestCase {
    private struct Stored: Decodable {
        let file: String
        let shape: [Int]
    }

    private struct Resize {
        let contract: Preprocessing
        let decoded: Stored
        let resized: Stored
        let tensor: Stored
    }

    private struct Orient: Decodable {
        let orientation: Int
        let stored: Stored
        let upright: Stored
    }

    private func json() throws -> [String: Any] {
        let data = try Data(contentsOf: goldensFolder().appending(path: "cases/cases.json"))
        let object = try JSONSerialization.jsonObject(with: data)
        return try XCTUnwrap(object as? [String: Any])
    }

    private func decoded<T: Decodable>(_ value: Any?) throws -> T {
        try JSONDecoder().decode(
            T.self, from: JSONSerialization.data(withJSONObject: XCTUnwrap(value)))
    }

    private func resizeCases() throws -> [Resize] {
        let entries = try json()["resize"] as? [[String: Any]]
        return try XCTUnwrap(entries).map { entry in
            let contract = try JSONSerialization.data(
                withJSONObject: XCTUnwrap(entry["preprocess"]))
            return try Resize(
                contract: Preprocessing(json: contract), decoded: decoded(entry["decoded"]),
                resized: decoded(entry["resized"]), tensor: decoded(entry["tensor"]))
        }
    }

    private func data(_ stored: Stored) throws -> Data {
        try Data(contentsOf: goldensFolder().appending(path: "cases").appending(path: stored.file))
    }

    private func image(_ stored: Stored) throws -> RgbImage {
        try RgbImage(
            width: stored.shape[1], height: stored.shape[0], pixels: [UInt8](data(stored)))
    }

    func testResizedBytesArePillowsAndTheTensorIsNumPys() throws {
        let cases = try resizeCases()
        XCTAssertGreaterThanOrEqual(cases.count, 30)
        for sample in cases {
            let photo = try image(sample.decoded)
            let name = "\(photo.width) x \(photo.height) by \(sample.contract)"
            let resized = photo.resizedAndCropped(sample.contract)
            XCTAssertEqual(resized, try image(sample.resized), name)
            let expected = try littleEndianFloats(data(sample.tensor))
            let tensor = resized.normalised(sample.contract)
            XCTAssertEqual(tensor.count, expected.count, name)
            let worst = zip(tensor, expected).map { abs($0 - $1) }.max() ?? .infinity
            XCTAssertLessThanOrEqual(worst, 1e-6, name)
        }
    }

    func testAllEightOrientationsArePillows() throws {
        let cases: [Orient] = try decoded(json()["orient"])
        XCTAssertEqual(cases.map(\.orientation), Array(1...8))
        for sample in cases {
            let upright = try image(sample.stored).upright(orientation: sample.orientation)
            XCTAssertEqual(upright, try image(sample.upright), "\(sample.orientation)")
        }
    }

    func testAContractThatWouldMakeOtherPixelsIsRefused() throws {
        let entries = try json()["resize"] as? [[String: Any]]
        let good = try XCTUnwrap(entries?.first?["preprocess"] as? [String: Any])
        let damages: [(String, Any)] = [
            ("gamma", 2.2), ("crop_pct", 0), ("mode", "pad"), ("interpolation", "lanczos"),
            ("std", [1, 0, 1]), ("mean", [0.5]), ("channel_order", "bgr"), ("size", 0),
        ]
        for (key, value) in damages {
            var changed = good
            changed[key] = value
            let data = try JSONSerialization.data(withJSONObject: changed)
            XCTAssertThrowsError(try Preprocessing(json: data), key) { error in
                XCTAssert("\(error)".contains("preprocess.json: "), "\(error)")
            }
        }
    }
}

import Foundation
import XCTest

@testable import TinyViTKit

/// Oracle: a bundle that Python wrote; the check has to pass on it and on nothing else.
final class ParityCheckTests: XCTestCase {
    private func spoilt(
        _ file: String, _ change: (Data) throws -> Data
    ) async throws -> ParityResult {
        let bundle = try ModelBundle(folder: damagedBundle(self, file, change))
        let result = try await checkParity(bundle, Replay(recorded: writtenBundle()))
        XCTAssertFalse(result.passed, "\(file) was changed unnoticed")
        return result
    }

    func testTheBundleAsItWasWrittenPasses() async throws {
        let bundle = try writtenBundle()
        let result = try await checkParity(bundle, Replay(recorded: bundle))
        XCTAssertEqual(result.verdicts.flatMap(\.problems), [])
        XCTAssert(result.passed)
        XCTAssertEqual(result.verdicts.count, 3)
        XCTAssert(result.verdicts.allSatisfy { $0.gate == .float32 })
    }

    func testOneWrongDecodedPhotoIsFound() async throws {
        let result = try await spoilt("golden/0.decoded.bin") { Data(count: $0.count) }
        XCTAssertEqual(result.verdicts.map(\.problems.isEmpty), [false, true, true])
    }

    func testRecordedLogitsOfAnotherRuntimeAreFound() async throws {
        let result = try await spoilt("golden/2.artifact_logits.bin") { Data($0.reversed()) }
        XCTAssertEqual(result.verdicts.map(\.problems.isEmpty), [true, true, false])
    }

    func testLogitsThatAreABitOffFailInFloat32() async throws {
        let bundle = try writtenBundle()
        let result = try await checkParity(bundle, Replay(recorded: bundle, scale: 1.001))  // 60 dB
        XCTAssertFalse(result.passed)
    }

    func testLogitsThatAreNotNumbersFail() async throws {
        let bundle = try writtenBundle()
        let result = try await checkParity(bundle, Replay(recorded: bundle, scale: .nan))
        XCTAssert(result.verdicts.allSatisfy { $0.problems.count == 1 })
    }

    func testAnArrayOfTheWrongLengthIsRefusedWithTheBundlesName() async throws {
        let folder = try damagedBundle(self, "golden/0.tensor.bin") { $0.prefix(8) }
        XCTAssertThrowsError(try ModelBundle(folder: folder).goldens()) { error in
            XCTAssert("\(error)".contains(folder.lastPathComponent), "\(error)")
        }
    }

    func testNoVerdictIsNoPass() {
        XCTAssertFalse(ParityResult(verdicts: []).passed)
    }

    func testDecibelsByHand() {
        XCTAssertEqual(sqnrDb(reference: [3, 4], measured: [3, 4.5]), 20, accuracy: 1e-9)
        XCTAssertEqual(sqnrDb(reference: [1], measured: [1]), .infinity)
        XCTAssertEqual(sqnrDb(reference: [0], measured: [1]), -.infinity)
    }
}

import Foundation
import XCTest

@testable import TinyViTKit

/// What `python apps/goldens.py OUT` wrote: the folder OUT, in the environment.
func goldensFolder() throws -> URL {
    let path = try XCTUnwrap(
        ProcessInfo.processInfo.environment["TINYVIT_GOLDENS"], "set TINYVIT_GOLDENS to OUT")
    return URL(filePath: path, directoryHint: .isDirectory)
}

/// The bundle that Python wrote.
func writtenBundle() throws -> ModelBundle {
    let folders = try bundleFolders(in: goldensFolder().appending(path: "bundles"))
    return try ModelBundle(folder: XCTUnwrap(folders.first))
}

/// A copy of the bundle with one file changed; removed when the test ends.
func damagedBundle(
    _ test: XCTestCase, _ file: String, _ change: (Data) throws -> Data
) throws -> URL {
    let parent = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
    try FileManager.default.createDirectory(at: parent, withIntermediateDirectories: true)
    test.addTeardownBlock { try FileManager.default.removeItem(at: parent) }
    let written = try writtenBundle()
    let folder = parent.appending(path: written.name)
    try FileManager.default.copyItem(at: written.folder, to: folder)
    let path = folder.appending(path: file)
    try change(Data(contentsOf: path)).write(to: path)
    return folder
}

/// Answers an input with the logits that the bundle recorded for it: a runtime without an error.
struct Replay: ImageClassifier {
    let recorded: ModelBundle
    var scale: Float = 1

    func logits(_ input: ModelInput) async throws -> [Float] {
        let golden = try recorded.goldens().first { golden in
            switch input {
            case .image(let image): golden.resized == image
            case .tensor(let tensor): golden.tensor == tensor
            }
        }
        let found = try XCTUnwrap(golden)
        return (found.artifactLogits ?? found.referenceLogits).map { $0 * scale }
    }
}

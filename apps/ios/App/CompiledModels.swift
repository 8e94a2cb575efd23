import CoreML
import Foundation
import TinyViTKit

/// Compiles packages once a version: Core ML runs `.mlmodelc`, a bundle has `.mlpackage`.
enum CompiledModels {
    /// The compiled package of a bundle, from the cache where there is one.
    ///
    /// - Throws: what Core ML throws of a package that it cannot compile.
    static func url(for bundle: ModelBundle) async throws -> URL {
        let caches = URL.cachesDirectory.appending(path: "compiled")
        let url = caches.appending(path: "\(bundle.manifest.sha256).mlmodelc")
        let files = FileManager.default
        if files.fileExists(atPath: url.path) { return url }
        let compiled = try await MLModel.compileModel(at: bundle.artifact)
        try files.createDirectory(at: caches, withIntermediateDirectories: true)
        do {
            try files.moveItem(at: compiled, to: url)
        } catch CocoaError.fileWriteFileExists {
            try files.removeItem(at: compiled)  // another call was first
        }
        return url
    }
}

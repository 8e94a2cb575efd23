import Foundation

/// What an artifact takes.
public enum ModelInput: Sendable {
    /// S x S pixels: a Core ML classifier package, which normalises them itself.
    case image(RgbImage)
    /// float32 (3, S, S), normalised.
    case tensor([Float])
}

/// What the app needs of `manifest.json`.
public struct Manifest: Equatable, Sendable {
    public enum InputKind: String, Sendable { case image, tensor }

    public let target: String
    public let precision: String
    /// File name of the artifact.
    public let artifact: String
    public let sha256: String
    public let sizeBytes: Int
    public let inputName: String
    public let inputKind: InputKind
    public let outputName: String
    /// Number of logits.
    public let classes: Int
    public let toolVersion: String
}

/// A bundle that was read: everything but the artifact and the golden vectors.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest
    public let preprocessing: Preprocessing
    public let labels: [String]

    public var name: String { folder.lastPathComponent }
    public var artifact: URL { folder.appending(path: manifest.artifact) }

    /// Reads a bundle.
    ///
    /// - Throws: `BundleError`: not a bundle that this app can run.
    public init(folder: URL) throws {
        do {
            let json = try Data(contentsOf: folder.appending(path: "manifest.json"))
            let fields = try JSONDecoder().decode(ManifestFields.self, from: json)
            preprocessing = try Preprocessing(
                json: Data(contentsOf: folder.appending(path: "preprocess.json")))
            manifest = try fields.manifest(size: preprocessing.size)
            let text = try String(
                contentsOf: folder.appending(path: "labels.txt"), encoding: .utf8)
            labels = text.split(separator: "\n", omittingEmptySubsequences: false)
                .dropLast().map(String.init)
            guard labels.count == manifest.classes else {
                throw BundleError("\(labels.count) labels for \(manifest.classes) classes")
            }
        } catch {
            throw unusable(folder.lastPathComponent, error)
        }
        self.folder = folder
    }

    /// What this bundle's artifact takes of a resized photo.
    public func input(_ resized: RgbImage) -> ModelInput {
        switch manifest.inputKind {
        case .image: .image(resized)
        case .tensor: .tensor(resized.normalised(preprocessing))
        }
    }
}

/// The bundles in a folder of bundles, by its `index.json`.
///
/// - Throws: `BundleError`: there is no index, or it is damaged or empty.
public func bundleFolders(in folder: URL) throws -> [URL] {
    struct Index: Decodable {
        struct Entry: Decodable { let name: String }

        let bundles: [Entry]
    }
    do {
        let data = try Data(contentsOf: folder.appending(path: "index.json"))
        let index = try JSONDecoder().decode(Index.self, from: data)
        guard !index.bundles.isEmpty else { throw BundleError("index.json lists no bundle") }
        return index.bundles.map { folder.appending(path: $0.name) }
    } catch {
        throw unusable(folder.lastPathComponent, error)
    }
}

func unusable(_ name: String, _ error: any Error) -> BundleError {
    BundleError(
        "\(name): not a usable bundle (\(reason(error))); "
            + "write it again with 'tinyvit-edge bundle'")
}

/// One line of what went wrong; a decoding error does not say where in its description.
func reason(_ error: any Error) -> String {
    switch error {
    case let error as BundleError: error.message
    case DecodingError.keyNotFound(let key, _): "'\(key.stringValue)' is missing"
    case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context):
        "'\(context.codingPath.map(\.stringValue).joined(separator: "."))' is of a wrong type"
    default: error.localizedDescription
    }
}

private struct ManifestFields: Decodable {
    struct Recipe: Decodable { let name: String }
    struct Tool: Decodable { let version: String }
    struct Artifact: Decodable {
        let file: String
        let sha256: String
        let size_bytes: Int
    }
    struct Input: Decodable {
        let name: String
        let kind: String
        let shape: [Int]
    }
    struct Output: Decodable {
        let name: String
        let shape: [Int]
    }

    static let schemaVersion = 1

    let schema_version: Int
    let target: String
    let recipe: Recipe
    let tool: Tool
    let artifact: Artifact
    let input: Input
    let output: Output

    func manifest(size: Int) throws -> Manifest {
        guard schema_version == Self.schemaVersion else {
            throw BundleError("schema version \(schema_version) is not \(Self.schemaVersion)")
        }
        guard let kind = Manifest.InputKind(rawValue: input.kind) else {
            throw BundleError("its artifact takes '\(input.kind)'")
        }
        let channels = RgbImage.channels
        let expected =
            kind == .tensor ? [1, channels, size, size] : [size, size, channels]
        guard input.shape == expected else {
            throw BundleError("its artifact takes \(input.shape), its contract makes \(expected)")
        }
        guard output.shape.count == 2, output.shape[0] == 1 else {
            throw BundleError("its artifact gives \(output.shape)")
        }
        return Manifest(
            target: target, precision: recipe.name, artifact: artifact.file,
            sha256: artifact.sha256, sizeBytes: artifact.size_bytes, inputName: input.name,
            inputKind: kind, outputName: output.name, classes: output.shape[1],
            toolVersion: tool.version)
    }
}

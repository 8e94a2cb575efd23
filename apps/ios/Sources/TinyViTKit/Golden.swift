import Foundation

/// One photo on its way through the model, as it was where the bundle was made.
public struct Golden: Sendable {
    public let name: String
    /// Upright RGB.
    public let decoded: RgbImage
    /// S x S pixels.
    public let resized: RgbImage
    /// float32 (3, S, S).
    public let tensor: [Float]
    /// Of the float32 PyTorch model.
    public let referenceLogits: [Float]
    /// Of the artifact; nil where its runtime did not exist on that machine.
    public let artifactLogits: [Float]?
}

extension ModelBundle {
    /// The golden vectors.
    ///
    /// - Throws: `BundleError`: the index or an array is missing or damaged.
    public func goldens() throws -> [Golden] {
        do {
            let data = try Data(contentsOf: location("golden.json"))
            let index = try JSONDecoder().decode(Index.self, from: data)
            guard !index.images.isEmpty else { throw BundleError("golden.json lists no image") }
            return try index.images.map { try golden($0) }
        } catch {
            throw unusable(name, error)
        }
    }

    private func golden(_ entry: Entry) throws -> Golden {
        let side = preprocessing.size
        let resized = try image(entry.resized)
        guard resized.width == side, resized.height == side else {
            throw BundleError(
                "golden pixels of \(resized.width) x \(resized.height) for a model of \(side)")
        }
        return try Golden(
            name: entry.name,
            decoded: image(entry.decoded),
            resized: resized,
            tensor: floats(entry.tensor, count: RgbImage.channels * side * side),
            referenceLogits: floats(entry.reference_logits, count: labels.count),
            artifactLogits: entry.artifact_logits.map { try floats($0, count: labels.count) })
    }

    private func image(_ about: StoredArray) throws -> RgbImage {
        let pixels = try [UInt8](Data(contentsOf: location(about.file)))
        guard about.dtype == "uint8", about.shape.count == 3, about.shape.allSatisfy({ $0 > 0 }),
            about.shape[2] == RgbImage.channels, about.shape.reduce(1, *) == pixels.count
        else { throw BundleError("\(about.file) is no image of shape \(about.shape)") }
        return RgbImage(width: about.shape[1], height: about.shape[0], pixels: pixels)
    }

    private func floats(_ about: StoredArray, count: Int) throws -> [Float] {
        let values = try littleEndianFloats(Data(contentsOf: location(about.file)))
        guard about.dtype == "float32", values.count == count else {
            throw BundleError("\(about.file) has \(values.count) of \(count) numbers")
        }
        return values
    }

    private func location(_ file: String) -> URL {
        folder.appending(path: "golden").appending(path: file)
    }
}

/// Raw little-endian float32; what is left of fewer than four bytes is dropped.
func littleEndianFloats(_ data: Data) -> [Float] {
    let bytes = [UInt8](data)
    return stride(from: 0, to: bytes.count - 3, by: 4).map { at in
        let bits = (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[at + $1]) << UInt32(8 * $1) }
        return Float(bitPattern: bits)
    }
}

private struct Index: Decodable { let images: [Entry] }

private struct Entry: Decodable {
    let name: String
    let decoded: StoredArray
    let resized: StoredArray
    let tensor: StoredArray
    let reference_logits: StoredArray
    let artifact_logits: StoredArray?
}

private struct StoredArray: Decodable {
    let file: String
    let shape: [Int]
    let dtype: String
}

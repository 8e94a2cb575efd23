import Foundation

/// The preprocessing contract of a bundle: `preprocess.json`.
public struct Preprocessing: Equatable, Sendable {
    /// How the photo's aspect ratio is treated.
    public enum Mode: String, Sendable { case crop, squash }

    /// Pillow's antialiased filters.
    public enum Interpolation: String, Sendable { case bicubic, bilinear }

    /// Side S of the square model input, in pixels.
    public let size: Int
    /// In (0, 1]; in mode `crop` the shorter side becomes `Int(S / cropPct)`.
    public let cropPct: Double
    public let mode: Mode
    public let interpolation: Interpolation
    /// Per channel, of values in 0...1.
    public let mean: [Float]
    /// Per channel, of values in 0...1; positive.
    public let std: [Float]

    /// Reads the contract. All keys are required and no other is accepted: a key that this version
    /// does not know may change the pixels.
    ///
    /// - Throws: `BundleError`: a key is missing or unknown, or a value is out of range.
    public init(json data: Data) throws {
        let known = Set(Fields.CodingKeys.allCases.map(\.rawValue))
        do {
            let keys = try JSONDecoder().decode([String: AnyValue].self, from: data).keys
            if let unknown = keys.first(where: { !known.contains($0) }) {
                throw BundleError("unknown key '\(unknown)'")
            }
            try self.init(JSONDecoder().decode(Fields.self, from: data))
        } catch {
            throw BundleError("preprocess.json: \(reason(error)); export again")
        }
    }

    private init(_ fields: Fields) throws {
        guard let mode = Mode(rawValue: fields.mode) else {
            throw BundleError("mode is '\(fields.mode)'")
        }
        guard let interpolation = Interpolation(rawValue: fields.interpolation) else {
            throw BundleError("interpolation is '\(fields.interpolation)'")
        }
        guard fields.channelOrder == "rgb" else { throw BundleError("channel_order is not rgb") }
        guard fields.size > 0 else { throw BundleError("size is \(fields.size)") }
        guard fields.cropPct > 0, fields.cropPct <= 1 else {
            throw BundleError("crop_pct is \(fields.cropPct); it must be in (0, 1]")
        }
        // Through Double, and then to Float: the one rounding that the contract has.
        let mean = fields.mean.map { Float($0) }
        let std = fields.std.map { Float($0) }
        guard mean.count == RgbImage.channels, mean.allSatisfy(\.isFinite) else {
            throw BundleError("mean is \(mean); it must be three finite numbers")
        }
        guard std.count == RgbImage.channels, std.allSatisfy({ $0.isFinite && $0 > 0 }) else {
            throw BundleError("std is \(std); it must be three numbers above 0")
        }
        self.size = fields.size
        self.cropPct = fields.cropPct
        self.mode = mode
        self.interpolation = interpolation
        self.mean = mean
        self.std = std
    }

    /// Width and height that a photo is resized to before the crop.
    public func resizedSize(width: Int, height: Int) -> (width: Int, height: Int) {
        if mode == .squash { return (size, size) }
        let short = Int(Double(size) / cropPct)
        let long = Int(Double(short * max(width, height)) / Double(min(width, height)))
        return width <= height ? (short, long) : (long, short)
    }
}

private struct Fields: Decodable {
    enum CodingKeys: String, CodingKey, CaseIterable {
        case size
        case cropPct = "crop_pct"
        case mode, interpolation, mean, std
        case channelOrder = "channel_order"
    }

    let size: Int
    let cropPct: Double
    let mode: String
    let interpolation: String
    let mean: [Double]
    let std: [Double]
    let channelOrder: String
}

/// Any JSON value, unread.
private struct AnyValue: Decodable {
    init(from decoder: Decoder) throws {}
}
